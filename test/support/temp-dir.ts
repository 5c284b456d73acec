/** A folder that vanishes with the test: `await using dir = await tempDir()`. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface TempDir extends AsyncDisposable {
  readonly path: string;
}

export const tempDir = async (): Promise<TempDir> => {
  const path = await mkdtemp(join(tmpdir(), "darkbloom-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
};
