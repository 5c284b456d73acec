/** `darkbloom keys`: create, list and revoke API keys, before and while the coordinator runs. */
import { Command } from "commander";
import type { Admin } from "../src/coordinator/admin/client.ts";
import { loadConfig } from "../src/core/config.ts";
import { Fault } from "../src/core/fault.ts";
import { emit, type CommandDeps } from "./_deps.ts";
import { wireAdmin } from "./_coordinator.ts";

export interface AdminFlags {
  readonly dataDir?: string;
  readonly json?: true;
}

/** Opens the data folder's operations for one action. */
export const withAdmin = async (
  deps: CommandDeps,
  flags: AdminFlags,
  action: (admin: Admin) => Promise<void>,
): Promise<void> => {
  const config = loadConfig({ dataDir: flags.dataDir, environment: deps.environment });
  using admin = await wireAdmin(deps, config);
  await action(admin);
};

/** Flags every such action has. */
export const adminCommand = (name: string, description: string): Command =>
  new Command(name)
    .description(description)
    .option("--data-dir <folder>", "the coordinator's data folder (default ~/.darkbloom)")
    .option("--json", "print JSON");

/** Refuses what can be no id, such as a secret pasted by mistake, without repeating it. */
export const checkEntityId = (prefix: "key" | "jt", id: string): void => {
  if (!new RegExp(`^${prefix}_[0-9a-f]{24}$`).test(id))
    throw new Fault("usage", `an id looks like ${prefix}_ and 24 hex digits`, {
      hint: `find it with: darkbloom ${prefix === "key" ? "keys" : "join-token"} list`,
    });
};

const cell = (value: unknown): string => {
  if (typeof value === "string") return value;
  if (value === null) return "-";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return Array.isArray(value) ? value.join(",") : JSON.stringify(value);
};

const toTable = (items: readonly object[]): string => {
  const names = Object.keys(items[0] ?? {});
  const lines = [names, ...items.map((item) => Object.values(item).map(cell))];
  const widths = names.map((_, column) => Math.max(...lines.map((line) => (line[column] ?? "").length)));
  return lines
    .map((line) =>
      line
        .map((text, i) => text.padEnd(widths[i] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
};

/** A table for people; JSON lines for scripts. */
export const emitList = (deps: CommandDeps, json: boolean, items: readonly object[], empty: string): void => {
  if (json) for (const item of items) emit(deps, json, item, () => "");
  else if (items.length > 0) deps.stdout(`${toTable(items)}\n`);
  if (items.length === 0 && !json) deps.stdout(`${empty}\n`);
};

export const keysCommand = (deps: CommandDeps): Command => {
  const keys = new Command("keys").description("create, list and revoke API keys of a coordinator");
  keys.addCommand(
    adminCommand("create", "make a key; its secret is shown once")
      .option("--name <text>", "what the key is for", "unnamed")
      .action((flags: AdminFlags & { readonly name: string }) =>
        withAdmin(deps, flags, async (admin) => {
          const created = await admin.createKey({ name: flags.name });
          emit(deps, flags.json ?? false, created, () => `${created.key}\n(${created.id}; shown only this once)`);
        }),
      ),
  );
  keys.addCommand(
    adminCommand("list", "show all keys, newest first").action((flags: AdminFlags) =>
      withAdmin(deps, flags, async (admin) =>
        emitList(
          deps,
          flags.json ?? false,
          await admin.listKeys(),
          "no keys yet; make one with: darkbloom keys create",
        ),
      ),
    ),
  );
  keys.addCommand(
    adminCommand("revoke", "end a key at once")
      .argument("<id>", "key_…, as the list shows it")
      .action((id: string, flags: AdminFlags) =>
        withAdmin(deps, flags, async (admin) => {
          checkEntityId("key", id);
          await admin.revokeKey(id);
          emit(deps, flags.json ?? false, { id, revoked: true }, () => `${id} revoked`);
        }),
      ),
  );
  return keys;
};
