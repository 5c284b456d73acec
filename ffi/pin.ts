/** The one version of llama.cpp this program works with, and where each platform gets it from. */

/** Version of the `@node-llama-cpp/*` packages and of the `node-llama-cpp` tarball that carries the matching source. */
export const PACKAGE_VERSION = "3.21.1";

/** What `llama_version()` of the packaged library says; anything else is refused. */
export const LLAMA_VERSION = "0.4.0-dev";

/** Name of the pin in cache keys and statements. */
export const PIN = `llama.cpp ${LLAMA_VERSION} (node-llama-cpp ${PACKAGE_VERSION})`;

/** Package whose tarball holds llama.cpp's source as a git bundle. */
export const SOURCE_PACKAGE = "node-llama-cpp";

/** npm integrity of that tarball. */
export const SOURCE_INTEGRITY =
  "sha512-E3N0Ev2Va0wzydvXYFwM9Hvyo07PoWjt8T/9GMc43Cvt8YkV/NU/tYUgEMC1grTPv2o9PRjQi0G3Wb5P/awiMg==";

/** Folder of the source checkout; changes with the pin, so that old and new never mix. */
export const SOURCE_KEY = `${PACKAGE_VERSION}-13737412fd956b4c`;

export type GpuVariant = "cuda" | "vulkan";

/** A prebuilt package: the npm name and the folder of libraries inside it. */
export interface NativePackage {
  readonly name: string;
  readonly binsDir: string;
}

const nativePackage = (target: string): NativePackage => ({
  name: `@node-llama-cpp/${target}`,
  binsDir: `bins/${target}`,
});

const PACKAGES: Readonly<Record<string, NativePackage>> = {
  "linux-x64": nativePackage("linux-x64"),
  "linux-arm64": nativePackage("linux-arm64"),
  "darwin-arm64": nativePackage("mac-arm64-metal"),
  "linux-x64-cuda": nativePackage("linux-x64-cuda"),
  "linux-x64-vulkan": nativePackage("linux-x64-vulkan"),
};

/** Key of a platform, as `process.platform` and `process.arch` name it: `linux-x64`. */
export const platformKey = (platform: string, arch: string): string => `${platform}-${arch}`;

/** Platforms that have a default package. */
export const SUPPORTED_PLATFORMS: readonly string[] = ["linux-x64", "linux-arm64", "darwin-arm64"];

/** The package for a platform; null where there is none. */
export const packageFor = (platform: string, gpu: GpuVariant | null = null): NativePackage | null =>
  PACKAGES[gpu === null ? platform : `${platform}-${gpu}`] ?? null;
