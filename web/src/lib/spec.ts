// A training configuration as rows of a table: nested fields by their dotted path, what is not set left out.

export function specRows(train: Record<string, unknown>, prefix = ''): [path: string, value: string][] {
  return Object.entries(train).flatMap(([name, value]): [string, string][] => {
    const path = prefix + name;
    if (value === null || value === undefined) return [];
    if (typeof value === 'object' && !Array.isArray(value))
      return specRows(value as Record<string, unknown>, `${path}.`);
    return [[path, typeof value === 'string' ? value : JSON.stringify(value)]];
  });
}
