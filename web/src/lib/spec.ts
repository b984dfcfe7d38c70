// A training configuration as rows of a table: nested fields by their dotted path, what is not set left out.
// Nested ones come last: what a job is about stands on top.

export function specRows(train: Record<string, unknown>, prefix = ''): [path: string, value: string][] {
  const entries = Object.entries(train);
  const isNested = ([, value]: [string, unknown]): boolean =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  const flatFirst = [...entries.filter((entry) => !isNested(entry)), ...entries.filter(isNested)];
  return flatFirst.flatMap(([name, value]): [string, string][] => {
    const path = prefix + name;
    if (value === null || value === undefined) return [];
    if (typeof value === 'object' && !Array.isArray(value))
      return specRows(value as Record<string, unknown>, `${path}.`);
    return [[path, typeof value === 'string' ? value : JSON.stringify(value)]];
  });
}
