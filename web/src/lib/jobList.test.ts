import { expect, test } from 'vitest';
import type { Job } from '../api/types';
import { matches, titleOf, upsertJob } from './jobList';

const job = (id: string, over: Partial<Job> = {}): Job => ({
  id,
  name: `job ${id}`,
  status: 'queued',
  status_reason: null,
  intent: 'run',
  preset: 'demo',
  train: {},
  num_devices: 1,
  device_type: 'cpu',
  priority: 0,
  labels: {},
  owner: 'admin',
  time_limit_s: null,
  created_at: `2026-01-01T00:00:0${id}Z`,
  started_at: null,
  finished_at: null,
  progress: null,
  wait: null,
  attempt: null,
  result: null,
  log_tail: null,
  cursor: 1,
  ...over,
});

test('a new job goes where its age belongs', () => {
  const jobs = upsertJob([job('3'), job('1')], job('2'));
  expect(jobs.map((one) => one.id)).toEqual(['3', '2', '1']);
});

test('a change replaces, an older state does not', () => {
  const jobs = [job('1', { cursor: 5, status: 'running' })];
  expect(upsertJob(jobs, job('1', { cursor: 6, status: 'succeeded' }))[0]?.status).toBe('succeeded');
  expect(upsertJob(jobs, job('1', { cursor: 4 }))).toBe(jobs);
});

test('filters by status and by text in name and id, as the server does', () => {
  const one = job('1', { name: 'Longformer 8p', status: 'running' });
  expect(matches(one, { status: null, text: '' })).toBe(true);
  expect(matches(one, { status: 'running', text: ' FORMER ' })).toBe(true);
  expect(matches(one, { status: 'failed', text: '' })).toBe(false);
  expect(matches(one, { status: null, text: 'demo' })).toBe(false);
  expect(matches(one, { status: null, text: 'other' })).toBe(false);
});

test('a job whose name shows nothing is called by the end of its id', () => {
  const blank = job('0193a7b2-0000-7000-8000-0000cafe1234', { name: ' \u3000\t' });
  expect(titleOf(blank)).toBe('cafe1234');
  expect(matches(blank, { status: null, text: titleOf(blank) })).toBe(true);
  expect(titleOf(job('1'))).toBe('job 1');
});
