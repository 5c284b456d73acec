/** The Fault a call throws; anything else it throws, or nothing, fails the test. */
import { Fault } from "../../src/core/fault.ts";

export const faultOf = (run: () => unknown): Fault => {
  try {
    run();
  } catch (thrown) {
    if (thrown instanceof Fault) return thrown;
    throw thrown;
  }
  throw new Error("no fault was thrown");
};
