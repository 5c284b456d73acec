/** The process's environment, handed out once by the entry; a file of its own so that taking it loads nothing else. */

export type Environment = Readonly<Record<string, string | undefined>>;

export const processEnvironment = (): Environment => process.env;
