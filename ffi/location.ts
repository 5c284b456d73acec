/** Where the native libraries lie: plain data, so that a Worker or a child process can open the same ones again. */

export interface NativeLocation {
  /** Folder that holds every library and the shim side by side. */
  readonly dir: string;
  /** Absolute path of the shim. */
  readonly shimPath: string;
  /** File name inside `dir` of the CPU backend that passed the self-test; null where the libraries need none. */
  readonly cpuBackend: string | null;
  readonly pin: string;
  /** SHA-256 over names and contents of all library files, for statements. */
  readonly sha256: string;
}

/** File names of one library folder, by role. */
export interface NativeFiles {
  readonly base: string;
  readonly ggml: string;
  readonly llama: string;
  readonly common: string;
  /** One per micro-architecture; exactly one is loaded. */
  readonly cpuBackends: readonly string[];
  /** Metal, BLAS, CUDA, Vulkan: all are loaded, before the CPU backend. */
  readonly otherBackends: readonly string[];
}

const ROLES = {
  base: /^libggml-base\.(?:so|dylib)$/,
  ggml: /^libggml(?:\.[a-z]+)?\.v[0-9.]+\.(?:so|dylib)$/,
  llama: /^libllama(?:\.[a-z]+)?\.v[0-9.]+\.(?:so|dylib)$/,
  common: /^libllama-common\.(?:so|dylib)$/,
} as const;
const CPU_BACKEND = /^libggml-cpu(?:-[A-Za-z0-9._]+)?\.(?:so|dylib)$/;
const OTHER_BACKEND = /^libggml-(?!base\.|cpu[-.])[A-Za-z0-9._-]+\.(?:so|dylib)$/;

/** True for every file the native layer needs from a package; the shim and Node add-ons are none of them. */
export const isLibraryFile = (name: string): boolean =>
  Object.values(ROLES).some((pattern) => pattern.test(name)) || CPU_BACKEND.test(name) || OTHER_BACKEND.test(name);

/** Sorts a folder listing into roles; null when one of the four core libraries is absent. */
export const toNativeFiles = (names: readonly string[]): NativeFiles | null => {
  const sorted = names.toSorted();
  const find = (pattern: RegExp): string | undefined => sorted.find((name) => pattern.test(name));
  const base = find(ROLES.base);
  const ggml = find(ROLES.ggml);
  const llama = find(ROLES.llama);
  const common = find(ROLES.common);
  if (base === undefined || ggml === undefined || llama === undefined || common === undefined) return null;
  return {
    base,
    ggml,
    llama,
    common,
    cpuBackends: sorted.filter((name) => CPU_BACKEND.test(name)),
    otherBackends: sorted.filter((name) => OTHER_BACKEND.test(name)),
  };
};
