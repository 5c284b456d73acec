/** Loaded before every test file: each test process gets its own empty home, so that no test sees or touches a user's state. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const home = mkdtempSync(join(tmpdir(), "darkbloom-test-"));
process.env["DARKBLOOM_HOME"] = home;
process.on("exit", () => rmSync(home, { recursive: true, force: true }));
