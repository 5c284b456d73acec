/** How a person types this program again, for hints and ready-made lines. */
import { isCompiled } from "../src/core/spawn-self.ts";

export const programName = (): string => (isCompiled() ? "darkbloom" : "npx bun bin/darkbloom.ts");

/** A word of a ready-made line, quoted where a shell would take it apart. */
export const shellWord = (word: string): string =>
  /^[A-Za-z0-9_./:@%+=,-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;

export interface CurlTarget {
  /** Without `/v1`. */
  readonly url: string;
  readonly key: string;
  readonly model: string;
}

/** A `curl` line that works when pasted. */
export const curlLine = ({ url, key, model }: CurlTarget): string => {
  const body = JSON.stringify({
    model,
    stream: true,
    messages: [{ role: "user", content: "What is the capital of France?" }],
  });
  // A key that stands for a variable must be expanded by the shell.
  const quote = key.startsWith("$") ? '"' : "'";
  return `curl -N ${url}/v1/chat/completions -H ${quote}Authorization: Bearer ${key}${quote} -H 'Content-Type: application/json' -d '${body}'`;
};

/** The same in the official SDK's words. */
export const sdkLines = ({ url, key, model }: CurlTarget): string =>
  [
    `import OpenAI from "openai";`,
    `const client = new OpenAI({ baseURL: "${url}/v1", apiKey: "${key}" });`,
    `const answer = await client.chat.completions.create({`,
    `  model: "${model}",`,
    `  messages: [{ role: "user", content: "What is the capital of France?" }],`,
    `});`,
    `console.log(answer.choices[0].message.content);`,
  ].join("\n");
