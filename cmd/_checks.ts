/** Runs the doctor's probes side by side, each under its own deadline, and sums them up. */
import type { Clock } from "../src/core/clock.ts";
import { toFault } from "../src/core/fault.ts";

export type CheckStatus = "pass" | "warn" | "fail";

export interface CheckResult {
  readonly status: CheckStatus;
  /** What was seen. */
  readonly detail: string;
  /** What to do about it; null when there is nothing to do. */
  readonly fix: string | null;
}

export interface Check {
  readonly id: string;
  readonly section: string;
  readonly deadlineMs: number;
  /** A thrown fault is a failed check with the fault's message and hint. */
  readonly probe: (signal: AbortSignal) => Promise<CheckResult>;
}

export interface CheckReport extends CheckResult {
  readonly id: string;
  readonly section: string;
  readonly took_ms: number;
}

export interface CheckSummary {
  readonly pass: number;
  readonly warn: number;
  readonly fail: number;
}

export const pass = (detail: string): CheckResult => ({ status: "pass", detail, fix: null });
export const warn = (detail: string, fix: string | null): CheckResult => ({ status: "warn", detail, fix });
export const fail = (detail: string, fix: string | null): CheckResult => ({ status: "fail", detail, fix });

const runCheck = async (clock: Clock, check: Check): Promise<CheckReport> => {
  const startedMs = clock.monotonicMs();
  const controller = new AbortController();
  const { promise: expired, resolve } = Promise.withResolvers<CheckResult>();
  const timer = clock.after(check.deadlineMs, () => {
    controller.abort(new Error("deadline"));
    resolve(
      fail(
        `no answer within ${Math.round(check.deadlineMs / 1000)} s`,
        "try again; if it stays, look for a hanging disk or network",
      ),
    );
  });
  const probed = check.probe(controller.signal).catch((thrown: unknown): CheckResult => {
    const fault = toFault(thrown);
    return fail(fault.message, fault.hint ?? null);
  });
  const result = await Promise.race([probed, expired]);
  timer.cancel();
  return { id: check.id, section: check.section, ...result, took_ms: Math.round(clock.monotonicMs() - startedMs) };
};

/** Results come back in the order of the checks, whichever ends first. */
export const runChecks = (clock: Clock, checks: readonly Check[]): Promise<readonly CheckReport[]> =>
  Promise.all(checks.map((check) => runCheck(clock, check)));

export const summarize = (reports: readonly CheckReport[]): CheckSummary => {
  const count = (status: CheckStatus): number => reports.filter((report) => report.status === status).length;
  return { pass: count("pass"), warn: count("warn"), fail: count("fail") };
};

const MARK = { pass: "[PASS]", warn: "[WARN]", fail: "[FAIL]" } as const;

/** Text for people: sections, one line per check, the fix indented below. */
export const renderChecks = (reports: readonly CheckReport[]): string => {
  const lines: string[] = [];
  let section = "";
  for (const report of reports) {
    if (report.section !== section) {
      section = report.section;
      lines.push("", section);
    }
    lines.push(`  ${MARK[report.status]} ${report.id}: ${report.detail}`);
    if (report.fix !== null) lines.push(`         → ${report.fix}`);
  }
  const { pass, warn, fail } = summarize(reports);
  lines.push("", `${pass} passed, ${warn} warnings, ${fail} failed`);
  return lines.slice(1).join("\n");
};
