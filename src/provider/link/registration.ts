/** What a provider says of itself to a coordinator: its registration, its signed statements, and the check of the answer. */
import type { Clock } from "../../core/clock.ts";
import type { Hardware } from "../../core/hardware.ts";
import type { EngineModel } from "../../engine/engine.ts";
import type { CoordinatorMessage, ProviderMessage } from "../../protocol/messages.ts";
import { PROTOCOL_VERSION } from "../../protocol/timers.ts";
import type { ProviderKeys } from "../../trust/seal.ts";
import type { Signer } from "../../trust/signer.ts";
import { signStatement, type Statement } from "../../trust/statements.ts";
import { verifyWelcome } from "../../trust/welcome.ts";

type Register = Extract<ProviderMessage, { type: "register" }>;
type AttestationResponse = Extract<ProviderMessage, { type: "attestation_response" }>;
type Welcome = Extract<CoordinatorMessage, { type: "welcome" }>;

export interface AdvertisedModel {
  readonly model: EngineModel;
  readonly manifestSha256: string;
}

/** What a statement says beyond the machine's hardware. */
export type SystemFacts = Pick<Statement, "os" | "posture" | "build_sha256" | "native_sha256">;

export interface RegistrarDeps {
  readonly clock: Pick<Clock, "nowMs">;
  readonly signer: Signer;
  readonly keys: Pick<ProviderKeys, "publicKey" | "needsRotation" | "rotate">;
}

export interface RegistrarOptions {
  readonly version: string;
  readonly hardware: Hardware;
  readonly system: SystemFacts;
  readonly models: readonly AdvertisedModel[];
  /** Of the join token; null = any coordinator that signs is taken. */
  readonly fingerprint: string | null;
}

export class Registrar {
  readonly #deps: RegistrarDeps;
  readonly #options: RegistrarOptions;
  /** The key of this connection's `register`: welcome and first statement are about it. */
  #registeredKey = "";
  #isFirstStatement = true;

  constructor(deps: RegistrarDeps, options: RegistrarOptions) {
    this.#deps = deps;
    this.#options = options;
  }

  register(resumeToken: string | null): Register {
    const { signer, keys } = this.#deps;
    this.#registeredKey = keys.publicKey;
    this.#isFirstStatement = true;
    return {
      type: "register",
      protocol: PROTOCOL_VERSION,
      version: this.#options.version,
      capabilities: [],
      identity_key: signer.publicKey,
      k_public: this.#registeredKey,
      hardware: this.#options.hardware,
      models: this.#options.models.map(toWireModel),
      ...(resumeToken === null ? {} : { resume_token: resumeToken }),
    };
  }

  /** Rejects with `provider_rejected` when another coordinator than the join token's has answered. */
  async verifyWelcome(welcome: Welcome): Promise<void> {
    const { type: _type, signature, ...fields } = welcome;
    await verifyWelcome({
      signature,
      fields,
      audience: { identityKey: this.#deps.signer.publicKey, kPublic: this.#registeredKey },
      fingerprint: this.#options.fingerprint,
    });
  }

  /**
   * The statement for a nonce. A due rotation of `K` happens here, because a verified statement is what announces the
   * new key; the first statement of a connection must still name the registered one.
   */
  async attest(nonce: string): Promise<AttestationResponse> {
    const { clock, signer, keys } = this.#deps;
    if (!this.#isFirstStatement && keys.needsRotation(clock.nowMs())) await keys.rotate();
    const kPublic = this.#isFirstStatement ? this.#registeredKey : keys.publicKey;
    this.#isFirstStatement = false;
    const signed = await signStatement(signer, {
      nonce,
      identity_key: signer.publicKey,
      k_public: kPublic,
      hardware: this.#options.hardware,
      ...this.#options.system,
      models: this.#options.models.map(({ model, manifestSha256 }) => ({
        id: model.id,
        manifest_sha256: manifestSha256,
      })),
      issued_at: new Date(clock.nowMs()).toISOString(),
    });
    return { type: "attestation_response", ...signed };
  }
}

const toWireModel = ({ model, manifestSha256 }: AdvertisedModel): Register["models"][number] => ({
  id: model.id,
  manifest_sha256: manifestSha256,
  size_bytes: model.sizeBytes,
  quantization: model.quantization,
  context: model.contextTokens,
  vision: false,
  tools: model.toolsSupported,
  template_render_ok: model.templateRenderOk,
});
