/** Flag parsers that turn a wrong value into a usage fault which says what would be right. */
import type { Command } from "commander";
import { SETTINGS, type Section, type SectionValues, type Setting } from "../src/core/config-table.ts";
import { Fault } from "../src/core/fault.ts";

/** A commander parser for whole numbers within bounds. */
export const integerOption =
  (flag: string, min: number, max: number) =>
  (text: string): number => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!Number.isSafeInteger(value) || value < min || value > max)
      throw new Fault("usage", `${flag} must be a whole number from ${min} to ${max}, not "${text.slice(0, 40)}"`);
    return value;
  };

/** A commander parser for comma-separated lists. */
export const listOption =
  (flag: string) =>
  (text: string): readonly string[] => {
    const items = text
      .split(",")
      .map((item) => item.trim())
      .filter((item) => item !== "");
    if (items.length === 0) throw new Fault("usage", `${flag} must be a comma-separated list`);
    return items;
  };

const parserOf = (flag: string, setting: Setting): ((text: string) => unknown) | null => {
  switch (setting.type) {
    case "integer":
      return integerOption(flag, setting.min, setting.max);
    case "list":
      return listOption(flag);
    case "choice":
      return (text) => {
        if (setting.choices.includes(text)) return text;
        throw new Fault("usage", `${flag} must be one of ${setting.choices.join(", ")}, not "${text.slice(0, 40)}"`);
      };
    case "text":
    case "switch":
      return null;
  }
};

const defaultText = (setting: Setting): string =>
  setting.default === null || setting.type === "switch" || setting.default === "" || setting.type === "list"
    ? ""
    : ` (default ${String(setting.default)})`;

/** A flag that is one setting of the configuration table: its meaning, bounds and default come from there. */
export const settingOption = <N extends Section>(
  command: Command,
  flags: string,
  section: N,
  key: keyof SectionValues<N> & string,
): Command => {
  const setting = (SETTINGS[section] as Readonly<Record<string, Setting>>)[key];
  if (setting === undefined) throw new Error(`no setting ${section}.${key}`);
  const description = `${setting.description}${defaultText(setting)}`;
  const parser = parserOf(flags.split(" ")[0] ?? flags, setting);
  return parser === null ? command.option(flags, description) : command.option(flags, description, parser);
};
