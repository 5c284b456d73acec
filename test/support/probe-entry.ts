/** A program of only the hidden verb `_probe`, for tests of the native layer. */
import { runProbe } from "../../cmd/probe.ts";

process.exit(await runProbe(process.argv.slice(3)));
