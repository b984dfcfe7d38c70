import { expect, test } from 'vitest';
import { specRows } from './spec';

test('nested fields take their path, unset ones are left out', () => {
  const train = {
    train_file: 'a.txt',
    model: null,
    from_scratch: { layers: 4, window: [32, 64] },
    do_eval: false,
  };
  expect(specRows(train)).toEqual([
    ['train_file', 'a.txt'],
    ['do_eval', 'false'],
    ['from_scratch.layers', '4'],
    ['from_scratch.window', '[32,64]'],
  ]);
});
