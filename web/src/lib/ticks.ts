// Where the lines of a logarithmic axis stand.

const MOST = 6;

/** Powers of ten, every n-th where there are many; with 2 and 5 between where there are few. */
export function logTicks(min: number, max: number): number[] {
  const first = Math.floor(Math.log10(min));
  const last = Math.ceil(Math.log10(max));
  const stride = Math.ceil((last - first) / MOST);
  const ticks: number[] = [];
  for (let power = first; power <= last; power += stride) {
    const decade = 10 ** power;
    ticks.push(decade, ...(last - first < 3 ? [2 * decade, 5 * decade] : []));
  }
  return ticks.filter((tick) => tick >= min && tick <= max);
}
