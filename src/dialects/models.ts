/** The model list and one model, in OpenAI's shape. */
import { z } from "zod";

export const modelSchema = z.strictObject({
  id: z.string().min(1),
  object: z.literal("model"),
  created: z.int().min(0),
  owned_by: z.string(),
  context_length: z.int().min(1).optional().describe("Tokens one request may use, prompt and answer together."),
});

export const modelListSchema = z.strictObject({ object: z.literal("list"), data: z.array(modelSchema) });

export type ModelObject = z.output<typeof modelSchema>;
export type ModelList = z.output<typeof modelListSchema>;

export interface ModelEntry {
  readonly id: string;
  readonly createdSec: number;
  /** Absent = `darkbloom`. */
  readonly ownedBy?: string;
  readonly contextTokens?: number;
}

export const renderModel = (entry: ModelEntry): ModelObject => ({
  id: entry.id,
  object: "model",
  created: entry.createdSec,
  owned_by: entry.ownedBy ?? "darkbloom",
  ...(entry.contextTokens === undefined ? {} : { context_length: entry.contextTokens }),
});

export const renderModelList = (entries: readonly ModelEntry[]): ModelList => ({
  object: "list",
  data: entries.map(renderModel),
});
