/** The Fault that a promise ends with; any other end fails the test. */
import { Fault } from "../../src/core/fault.ts";

export const faultOf = async (promise: Promise<unknown>): Promise<Fault> => {
  try {
    await promise;
  } catch (thrown) {
    if (thrown instanceof Fault) return thrown;
    throw thrown;
  }
  throw new Error("nothing was thrown");
};
