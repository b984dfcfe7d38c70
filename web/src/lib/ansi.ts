// Colour codes of a log line as class names. Every other escape sequence is dropped; nothing here makes markup.

export interface Span {
  text: string;
  /** Space-separated class names: `fg-0` … `fg-15`, `bg-0` … `bg-15`, `bold`, `dim`, `italic`, `underline`. */
  className: string;
}

interface Style {
  fg: number | null;
  bg: number | null;
  flags: Set<string>;
}

// eslint-disable-next-line no-control-regex -- the escape character is what this module is about
const ESCAPE = /\x1b\[([0-9;:]*)m|\x1b\[[0-9;?:]*[ -/]*[@-~]|\x1b[@-Z\\-_]/g;
const FLAGS: Record<number, string> = { 1: 'bold', 2: 'dim', 3: 'italic', 4: 'underline' };

/** The spans of one line; the style starts afresh on each line. */
export function parseAnsi(line: string): Span[] {
  if (!line.includes('\x1b')) return [{ text: line, className: '' }];
  const spans: Span[] = [];
  const style: Style = { fg: null, bg: null, flags: new Set() };
  let start = 0;
  for (const match of line.matchAll(ESCAPE)) {
    pushSpan(spans, line.slice(start, match.index), style);
    start = match.index + match[0].length;
    if (match[1] !== undefined) applyCodes(style, match[1].split(/[;:]/).map(Number));
  }
  pushSpan(spans, line.slice(start), style);
  return spans.length > 0 ? spans : [{ text: '', className: '' }];
}

function pushSpan(spans: Span[], text: string, style: Style): void {
  if (text === '') return;
  const classes = [...style.flags];
  if (style.fg !== null) classes.push(`fg-${style.fg}`);
  if (style.bg !== null) classes.push(`bg-${style.bg}`);
  spans.push({ text, className: classes.join(' ') });
}

function applyCodes(style: Style, codes: number[]): void {
  for (let index = 0; index < codes.length; index++) {
    const code = codes[index] ?? 0;
    const flag = FLAGS[code];
    if (code === 0) reset(style);
    else if (flag) style.flags.add(flag);
    else if (code === 22) dropFlags(style, 'bold', 'dim');
    else if (code === 23) dropFlags(style, 'italic');
    else if (code === 24) dropFlags(style, 'underline');
    else if (code === 39) style.fg = null;
    else if (code === 49) style.bg = null;
    else if (code >= 30 && code <= 37) style.fg = code - 30;
    else if (code >= 90 && code <= 97) style.fg = code - 82;
    else if (code >= 40 && code <= 47) style.bg = code - 40;
    else if (code >= 100 && code <= 107) style.bg = code - 92;
    else if (code === 38 || code === 48) {
      const { colour, used } = extendedColour(codes.slice(index + 1));
      if (code === 38) style.fg = colour;
      else style.bg = colour;
      index += used;
    }
  }
}

function reset(style: Style): void {
  style.fg = null;
  style.bg = null;
  style.flags.clear();
}

function dropFlags(style: Style, ...flags: string[]): void {
  for (const flag of flags) style.flags.delete(flag);
}

/** The nearest of the sixteen named colours for `5;n` and `2;r;g;b`, and how many codes that took. */
function extendedColour(codes: number[]): { colour: number | null; used: number } {
  const [mode, a = 0, b = 0, c = 0] = codes;
  if (mode === 2) return { colour: nearest(a, b, c), used: 4 };
  if (mode !== 5) return { colour: null, used: 1 };
  if (a < 16) return { colour: a, used: 2 };
  if (a >= 232) return { colour: nearest(...grey(a)), used: 2 };
  const cube = a - 16;
  const level = (n: number): number => (n === 0 ? 0 : 55 + 40 * n);
  return {
    colour: nearest(level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6)),
    used: 2,
  };
}

const grey = (n: number): [number, number, number] => {
  const level = 8 + 10 * (n - 232);
  return [level, level, level];
};

function nearest(red: number, green: number, blue: number): number {
  const peak = Math.max(red, green, blue);
  if (peak < 64) return 0;
  const bits = [red, green, blue].reduce((sum, part, bit) => sum + (part > peak * 0.6 ? 1 << bit : 0), 0);
  const isGrey = bits === 7;
  if (isGrey) return peak < 150 ? 8 : peak < 230 ? 7 : 15;
  return peak > 200 ? bits + 8 : bits;
}
