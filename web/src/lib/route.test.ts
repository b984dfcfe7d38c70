import { expect, test } from 'vitest';
import { hrefOf, parseRoute, safeNext } from './route';

test('addresses and pages agree', () => {
  expect(parseRoute('/ui/')).toEqual({ page: 'jobs' });
  expect(parseRoute('/ui')).toEqual({ page: 'jobs' });
  expect(parseRoute('/ui/hosts')).toEqual({ page: 'hosts' });
  expect(parseRoute('/ui/jobs/0193-ab/')).toEqual({ page: 'job', id: '0193-ab' });
  expect(parseRoute(hrefOf({ page: 'job', id: 'a b/c' }))).toEqual({ page: 'job', id: 'a b/c' });
  expect(parseRoute(hrefOf({ page: 'hosts' }))).toEqual({ page: 'hosts' });
});

test('what is not a page is said to be missing', () => {
  for (const path of ['/ui/nope', '/ui/jobs/1/2', '/ui/jobs/%E0%A4%A', '/elsewhere']) {
    expect(parseRoute(path)).toEqual({ page: 'missing' });
  }
});

test('after signing in only own pages are taken', () => {
  expect(safeNext('/ui/jobs/0193')).toBe('/ui/jobs/0193');
  for (const next of [
    null,
    '',
    'https://elsewhere.test/',
    '//elsewhere.test',
    '/ui/../jobs',
    '/ui//x',
    'javascript:1',
  ]) {
    expect(safeNext(next)).toBe('/ui/');
  }
});
