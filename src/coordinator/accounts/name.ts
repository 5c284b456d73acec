/** Names that owners give to keys and join tokens. */
import { Fault } from "../../core/fault.ts";

const NAME_CHARS_MAX = 100;

/** Throws `usage` unless the name is one line of at most 100 characters. */
export const checkName = (what: string, name: string): string => {
  if (name.length > NAME_CHARS_MAX || /\p{Cc}/u.test(name))
    throw new Fault("usage", `a ${what}'s name has at most ${NAME_CHARS_MAX} characters on one line`, {
      param: "name",
    });
  return name;
};
