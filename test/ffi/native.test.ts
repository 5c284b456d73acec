/** Opening the library: what is missing or of another version is a fault that names it. */
import { beforeAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { basename, join } from "node:path";
import { toNativeFiles, type NativeLocation } from "../../ffi/location.ts";
import { openNative, toCString } from "../../ffi/native.ts";
import { demoNative, NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { faultOf } from "../support/fault-of.ts";
import { nativeForTests } from "../support/native.ts";
import { tempDir } from "../support/temp-dir.ts";

let location: NativeLocation;
beforeAll(async () => {
  location = await nativeForTests();
}, NATIVE_DEADLINE_MS);

describe("native", () => {
  test("opens once per thread and lists its devices", async () => {
    const native = await demoNative();
    expect(openNative(location)).toBe(native);
    const cpu = native.devices().find((device) => device.type === "cpu");
    expect(cpu?.totalBytes).toBeGreaterThan(0);
    expect(cpu?.freeBytes).toBeGreaterThan(0);
  });

  test("a missing shim is a fault with a hint", () => {
    const fault = faultOf(() => openNative({ ...location, shimPath: "/nonexistent/libdarkbloom-shim.so" }));
    expect([fault.code, fault.reason]).toEqual(["native_missing", "dlopen"]);
    expect(fault.hint).toContain("doctor");
  });

  test("a shim whose libraries are gone is a fault", async () => {
    await using dir = await tempDir();
    const shimPath = join(dir.path, basename(location.shimPath));
    cpSync(location.shimPath, shimPath);
    // The loader knows the real libraries by name already in this process, so ask a fresh one.
    const script = `import { openNative } from ${JSON.stringify(join(import.meta.dir, "../../ffi/native.ts"))};
      try { openNative(${JSON.stringify({ ...location, dir: dir.path, shimPath })}); } catch (fault) { process.stdout.write(fault.code); }`;
    const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "pipe" });
    expect(await new Response(child.stdout).text()).toBe("native_missing");
    expect(await child.exited).toBe(0);
  });

  test("a CPU backend that is not there is a fault", async () => {
    await using dir = await tempDir();
    const files = toNativeFiles(readdirSync(location.dir));
    mkdirSync(join(dir.path, "lib"));
    for (const name of [files!.base, files!.ggml, files!.llama, files!.common, basename(location.shimPath)])
      symlinkSync(join(location.dir, name), join(dir.path, "lib", name));
    const shimPath = join(dir.path, "lib", basename(location.shimPath));
    const elsewhere = { ...location, dir: join(dir.path, "lib"), shimPath, cpuBackend: "libggml-cpu-none.so" };
    const fault = faultOf(() => openNative(elsewhere));
    expect([fault.code, fault.reason]).toEqual(["native_failed", "load"]);
    rmSync(join(dir.path, "lib"), { recursive: true });
  });

  test("a path with NUL never reaches native code", () => {
    expect(() => toCString("a\0b")).toThrow("assertion failed");
  });
});
