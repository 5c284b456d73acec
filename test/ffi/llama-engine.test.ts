/** The real engine keeps the engine contract, on the real library and the demo model. */
import { openDemoEngine } from "../support/demo-engine.ts";
import { engineContract } from "../engine/contract.ts";

engineContract("llama", openDemoEngine);
