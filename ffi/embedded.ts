/** The native files inside this executable. From source there are none; the build replaces this module. */

export interface EmbeddedFiles {
  /** Hash over names and contents of all files; names the folder they are unpacked into. */
  readonly key: string;
  /** File name → path inside the executable. Libraries and the prebuilt shim. */
  readonly files: Readonly<Record<string, string>>;
  /** Path inside the executable of the demo model. */
  readonly demoModel?: string;
}

export const EMBEDDED: EmbeddedFiles | null = null;
