/** Children: bounded output, a deadline that holds, an end that is told, no core file. */
import { expect, test } from "bun:test";
import { describeEnd, outputTail, runCommand } from "../../ffi/run-child.ts";
import { withFileLock } from "../../ffi/file-lock.ts";
import { faultFrom } from "../support/native.ts";
import { tempDir } from "../support/temp-dir.ts";
import { join } from "node:path";

const sh = (script: string, deadlineMs = 10_000) => runCommand(["sh", "-c", script], { deadlineMs });

test("exit code and both outputs", async () => {
  const result = await sh("echo out; echo err >&2; exit 3");
  expect(result).toEqual({ exitCode: 3, signal: null, stdout: "out\n", stderrTail: "err\n", timedOut: false });
  expect(describeEnd(result, 10_000)).toBe("exit code 3");
  expect(outputTail(result)).toBe("out\n\nerr");
});

test("a signal is told, and leaves no core file", async () => {
  const result = await sh("ulimit -Hc; kill -ABRT $$");
  expect(result.stdout).toBe("0\n");
  expect(result.signal).toBe("SIGABRT");
  expect(describeEnd(result, 10_000)).toBe("killed by SIGABRT");
});

test("the deadline kills", async () => {
  const startedMs = performance.now();
  const result = await sh("exec sleep 30", 200);
  expect(performance.now() - startedMs).toBeLessThan(5_000);
  expect(result.timedOut).toBe(true);
  expect(describeEnd(result, 200)).toBe("no answer within 0 s");
});

test("output beyond the bound is dropped: the start of one, the end of the other is kept", async () => {
  const result = await sh(
    "head -c 3000000 /dev/zero | tr '\\0' a; head -c 3000000 /dev/zero | tr '\\0' b >&2; echo END >&2",
  );
  expect(result.exitCode).toBe(0);
  expect(result.stdout.length).toBe(1024 * 1024);
  expect(result.stderrTail.length).toBe(16 * 1024);
  expect(result.stderrTail.endsWith("bEND\n")).toBe(true);
});

test("a lock is held by one at a time and outlives no holder", async () => {
  await using dir = await tempDir();
  const path = join(dir.path, "deep/lock");
  const order: string[] = [];
  const first = withFileLock(path, 5_000, async () => {
    order.push("first in");
    const fault = await faultFrom(withFileLock(path, 120, async () => order.push("never")));
    expect(fault.code).toBe("io_failed");
    order.push("first out");
  });
  await Promise.all([first, withFileLock(path, 5_000, async () => order.push("second"))]);
  expect(order).toEqual(["first in", "first out", "second"]);
  const failing = withFileLock(path, 1_000, () => Promise.reject(new Error("work failed")));
  expect(await failing.catch((error: Error) => error.message)).toBe("work failed");
  expect(await withFileLock(path, 1_000, async () => "free again")).toBe("free again");
});
