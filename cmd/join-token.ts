/** `darkbloom join-token`: create, list and revoke the tokens with which provider machines join. */
import { Command } from "commander";
import { Fault } from "../src/core/fault.ts";
import { emit, type CommandDeps } from "./_deps.ts";
import { adminCommand, checkEntityId, emitList, withAdmin, type AdminFlags } from "./keys.ts";
import { listOption } from "./_options.ts";
import { programName } from "./_program.ts";

interface CreateFlags extends AdminFlags {
  readonly name: string;
  readonly models?: readonly string[];
  readonly expires?: string;
}

const toExpiryMs = (text: string | undefined): number | null => {
  if (text === undefined) return null;
  const atMs = Date.parse(text);
  if (Number.isNaN(atMs))
    throw new Fault("usage", `--expires is no date: "${text.slice(0, 40)}"`, { hint: "write it like 2027-01-31" });
  return atMs;
};

export const joinTokenCommand = (deps: CommandDeps): Command => {
  const tokens = new Command("join-token").description("create, list and revoke tokens with which providers join");
  tokens.addCommand(
    adminCommand("create", "make a join token; it is shown once")
      .option("--name <text>", "what the token is for", "unnamed")
      .option("--models <list>", "model ids its providers may bring (default any)", listOption("--models"))
      .option("--expires <date>", "last moment it lets a provider in (default never)")
      .action((flags: CreateFlags) =>
        withAdmin(deps, flags, async (admin) => {
          const expiresAtMs = toExpiryMs(flags.expires);
          const created = await admin.createJoinToken({
            name: flags.name,
            expiresAtMs,
            ...(flags.models === undefined ? {} : { models: flags.models }),
          });
          emit(
            deps,
            flags.json ?? false,
            created,
            () =>
              `${created.token}\n(${created.id}; shown only this once)\n\n${programName()} start --join ${created.token} --model <file.gguf>`,
          );
        }),
      ),
  );
  tokens.addCommand(
    adminCommand("list", "show all join tokens, newest first").action((flags: AdminFlags) =>
      withAdmin(deps, flags, async (admin) =>
        emitList(
          deps,
          flags.json ?? false,
          await admin.listJoinTokens(),
          "no join tokens yet; make one with: darkbloom join-token create",
        ),
      ),
    ),
  );
  tokens.addCommand(
    adminCommand("revoke", "end a join token at once; its providers are let go")
      .argument("<id>", "jt_…, as the list shows it")
      .action((id: string, flags: AdminFlags) =>
        withAdmin(deps, flags, async (admin) => {
          checkEntityId("jt", id);
          await admin.revokeJoinToken(id);
          emit(deps, flags.json ?? false, { id, revoked: true }, () => `${id} revoked`);
        }),
      ),
  );
  return tokens;
};
