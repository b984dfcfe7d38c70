import { expect, test } from 'vitest';
import type { Job } from '../api/types';
import { actionsOf } from './actions';

const of = (status: Job['status'], intent: Job['intent'] = 'run') => actionsOf({ status, intent });

test('what runs or waits can be paused, and a pause be taken back, also before it has come about', () => {
  expect(of('queued')).toEqual(['pause']);
  expect(of('running')).toEqual(['pause']);
  expect(of('running', 'preempt')).toEqual(['pause']);
  expect(of('running', 'pause')).toEqual(['resume']);
  expect(of('paused', 'pause')).toEqual(['resume']);
});

test('what failed or was cancelled can be retried, and nothing is left to do with a success', () => {
  expect(of('failed')).toEqual(['retry']);
  expect(of('cancelled', 'cancel')).toEqual(['retry']);
  expect(of('succeeded')).toEqual([]);
  expect(of('running', 'cancel')).toEqual([]);
});
