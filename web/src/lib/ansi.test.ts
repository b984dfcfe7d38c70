import { expect, test } from 'vitest';
import { parseAnsi } from './ansi';

test('plain text is one span', () => {
  expect(parseAnsi('<b>not markup</b>')).toEqual([{ text: '<b>not markup</b>', className: '' }]);
  expect(parseAnsi('')).toEqual([{ text: '', className: '' }]);
});

test('colours and weights become classes and end at a reset', () => {
  expect(parseAnsi('\x1b[1;31merror\x1b[0m: \x1b[92mok\x1b[39m.')).toEqual([
    { text: 'error', className: 'bold fg-1' },
    { text: ': ', className: '' },
    { text: 'ok', className: 'fg-10' },
    { text: '.', className: '' },
  ]);
  expect(parseAnsi('\x1b[mx')).toEqual([{ text: 'x', className: '' }]);
});

test('extended colours fall to the nearest named one', () => {
  expect(parseAnsi('\x1b[38;5;196mred\x1b[38;2;0;0;150mblue\x1b[48;5;2mback')).toEqual([
    { text: 'red', className: 'fg-9' },
    { text: 'blue', className: 'fg-4' },
    { text: 'back', className: 'fg-4 bg-2' },
  ]);
});

test('other sequences vanish without taking text along', () => {
  expect(parseAnsi('\x1b[2K\x1b[1Ga\x1b[?25lb')).toEqual([
    { text: 'a', className: '' },
    { text: 'b', className: '' },
  ]);
});
