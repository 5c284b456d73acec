/** Entry of an engine's worker: opens the model, then hands every message to the step loop. Owns every native handle. */
import { systemClock } from "../core/clock.ts";
import { toFault } from "../core/fault.ts";
import { createIds, systemRandom } from "../core/ids.ts";
import { LoadedModel } from "./loaded-model.ts";
import { WorkerLoop } from "./worker-loop.ts";
import { toWireFault, type FromWorker, type OpenSpec, type ReadyMessage, type ToWorker } from "./worker-protocol.ts";

declare const self: Worker;

/** Progress worth a message: every hundredth. */
const PROGRESS_STEP = 0.01;

const post = (message: FromWorker): void => send(JSON.stringify(message));

// oxlint-disable-next-line unicorn/require-post-message-target-origin -- this is a worker's port, not a window
const send = (message: string | ReadyMessage): void => self.postMessage(message);

const open = (spec: OpenSpec): WorkerLoop => {
  let reported = -1;
  const loaded = new LoadedModel(spec, (fraction) => {
    if (fraction < 1 && fraction - reported < PROGRESS_STEP) return;
    reported = fraction;
    post({ type: "progress", fraction });
  });
  send({ type: "ready", model: loaded.facts, abortFlag: loaded.context.abortFlag });
  return new WorkerLoop({ loaded, post, clock: systemClock(), ids: createIds(systemRandom()) });
};

let loop: WorkerLoop | null = null;

self.addEventListener("message", ({ data }: MessageEvent<ToWorker>): void => {
  if (data.type !== "open") {
    loop?.handle(data);
    return;
  }
  try {
    loop = open(data.spec);
  } catch (error) {
    post({ type: "failed", fault: toWireFault(toFault(error)) });
  }
});
