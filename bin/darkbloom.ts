#!/usr/bin/env bun
/** Entry of the executable: takes the real world, hands it to the program, ends with its exit code. */
import { main } from "../cmd/index.ts";
import { realDeps } from "../cmd/_world.ts";

process.exit(await main(realDeps(), process.argv.slice(2)));
