import { expect, test } from 'vitest';
import {
  formatAge,
  formatAxis,
  formatDateTime,
  formatDuration,
  formatMeasure,
  formatNumber,
  formatPercent,
  formatRanges,
  formatTime,
  formatLeft,
  formatUntil,
} from './format';
import { en } from './messages';
import { zh } from './messages.zh';

test('durations take their two largest units', () => {
  expect(formatDuration(0, 'en')).toBe('0 sec');
  expect(formatDuration(59.6, 'en')).toBe('1 min');
  expect(formatDuration(125, 'en')).toBe('2 min 5 sec');
  expect(formatDuration(7_260, 'en')).toBe('2 hr 1 min');
  expect(formatDuration(86_400, 'en')).toBe('1 day');
  expect(formatDuration(90_000, 'zh')).toBe('1天1小时');
});

test('numbers keep about four digits', () => {
  expect(formatNumber(4100.9, 'en')).toBe('4,101');
  expect(formatNumber(52.1234, 'en')).toBe('52.12');
  expect(formatNumber(5e-5, 'en')).toBe('5.00e-5');
  expect(formatNumber(0.00131, 'en')).toBe('0.00131');
  expect(formatNumber(0, 'en')).toBe('0');
  expect(formatAxis(12_000, 'en')).toBe('12K');
  expect(formatAxis(1e51, 'en')).toBe('1e51');
});

test('a measure that is watched keeps its width', () => {
  expect(formatMeasure(4.68, 'en')).toBe('4.680');
  expect(formatMeasure(121, 'en')).toBe('121.0');
  expect(formatMeasure(14_636.2, 'en')).toBe('14,636');
});

test('a time of another day names the day', () => {
  const now = Date.parse('2026-01-02T12:00:00');
  expect(formatTime('2026-01-02T09:05:07', now, 'en')).toBe('09:05:07');
  expect(formatTime('2026-01-01T09:05:07', now, 'en')).toBe('Jan 1, 09:05');
});

test('only what is done reads 100 %', () => {
  expect(formatPercent(0.9999, 'en')).toBe('99%');
  expect(formatPercent(1, 'en')).toBe('100%');
});

test('ages never lie in the future', () => {
  const now = Date.parse('2026-01-01T00:10:00Z');
  expect(formatAge('2026-01-01T00:07:00Z', now, 'en')).toBe('3 min. ago');
  expect(formatAge('2026-01-01T00:11:00Z', now, 'en')).toBe('now');
});

test('what is to come is told in the same units', () => {
  const now = Date.parse('2026-01-01T00:10:00Z');
  expect(formatUntil('2026-01-01T00:30:00Z', now, 'en')).toBe('in 20 min.');
  expect(formatUntil('2026-01-01T00:09:00Z', now, 'en')).toBe('now');
});

test('an expected start reads as a sentence', () => {
  const now = Date.parse('2026-01-01T00:10:00Z');
  const inTwo = formatLeft('2026-01-01T00:12:10Z', now, 'en');
  expect(en.starts_about(inTwo)).toBe('starts in about 2 min');
  expect(en.starts_roughly(inTwo)).toBe('starts in roughly 2 min');
  expect(en.starts_about(formatLeft('2026-01-02T06:10:00Z', now, 'en'))).toBe('starts in about 1 day');
  expect(en.starts_about(formatLeft('2026-01-01T00:09:00Z', now, 'en'))).toBe('is about to start');
  expect(zh.starts_roughly(formatLeft('2026-01-01T00:12:10Z', now, 'zh'))).toBe('大致2分钟后开始');
  expect(zh.starts_about(formatLeft('2026-01-01T00:09:00Z', now, 'zh'))).toBe('即将开始');
});

test('dates differ by language', () => {
  expect(formatDateTime('2026-01-01T00:10:00Z', 'en')).toContain('2026');
  expect(formatDateTime('2026-01-01T00:10:00Z', 'zh')).toContain('2026年');
});

test('cards read as ranges', () => {
  expect(formatRanges([])).toBe('');
  expect(formatRanges([3])).toBe('3');
  expect(formatRanges([5, 0, 1, 2])).toBe('0–2, 5');
});
