/** The Fault that a promise ends with; any other end fails the test. */
import { Fault } from "../../src/core/fault.ts";
import { rejectionOf } from "../support/rejection.ts";

export const rejectedFault = async (promise: Promise<unknown>): Promise<Fault> => {
  const thrown = await rejectionOf(promise);
  if (thrown instanceof Fault) return thrown;
  throw thrown;
};
