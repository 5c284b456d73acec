/** Which tool grammars a row may sample with: upstream's sampler has no bound of its own and would stop the whole step loop over some. */

/**
 * Places of one tool's schema, every reference followed. Each may be a state that the sampler holds at the same time, and it
 * compares every state with every other: 2,000 cost a fifth of a second per answer, 20,000 more than a minute.
 */
const PLACES_MAX = 2_048;
const QUANTIFIERS_MAX = 16;
/** Each range multiplies the states by its width. */
const RANGES_MAX = 2;

/** A repetition in a grammar, as upstream writes it; inside a quoted text it is a harmless false find. */
const REPETITION = /\{(\d+),(\d+)\}/g;

type Tool = { readonly function?: { readonly parameters?: unknown } } | null;

/** `{18,15}` (made of bounds that contradict each other, or of an integer bound of 17 digits and more) is read as 2⁶⁴ − 3. */
const repeatsBackwards = (grammar: string): boolean => {
  for (const [, from, to] of grammar.matchAll(REPETITION)) if (Number(from) > Number(to)) return true;
  return false;
};

/** Quantifiers inside quantified groups multiply. Escaped signs count too, which only errs on the safe side. */
const isTamePattern = (pattern: string): boolean =>
  !/\)[*+?{]/.test(pattern) &&
  (pattern.match(/[*+?{]/g)?.length ?? 0) <= QUANTIFIERS_MAX &&
  (pattern.match(/\{\d*,/g)?.length ?? 0) <= RANGES_MAX;

/** What `#/a/b` names inside the root; undefined when nothing. */
const resolve = (root: unknown, reference: string): unknown => {
  let found = root;
  for (const key of reference.split("/").slice(1))
    found = typeof found === "object" && found !== null ? (found as Readonly<Record<string, unknown>>)[key] : undefined;
  return found;
};

/** A schema that holds itself runs into the bound as well. */
const isTameSchema = (root: unknown): boolean => {
  const waiting: unknown[] = [root];
  for (let places = 0; waiting.length > 0; places += 1) {
    if (places + waiting.length > PLACES_MAX) return false;
    const value = waiting.pop();
    if (typeof value !== "object" || value === null) continue;
    const { pattern, $ref } = value as { readonly pattern?: unknown; readonly $ref?: unknown };
    if (typeof pattern === "string" && !isTamePattern(pattern)) return false;
    if (typeof $ref === "string") waiting.push(resolve(root, $ref));
    const isList = Array.isArray(value);
    for (const [key, item] of Object.entries(value))
      if (key !== "$defs" && key !== "definitions" && (isList || typeof item === "object")) waiting.push(item);
  }
  return true;
};

/**
 * False when sampling with this grammar could take without bound. Without its grammar an answer is still parsed for calls;
 * only nothing keeps their arguments to the schema.
 */
export const isTameGrammar = (grammar: string, tools: readonly unknown[]): boolean =>
  !repeatsBackwards(grammar) && tools.every((tool) => isTameSchema((tool as Tool)?.function?.parameters));
