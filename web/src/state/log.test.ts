import { expect, test, vi, type Mock } from 'vitest';
import { getLog, type LogQuery } from '../api/client';
import type { LogMessage } from '../api/types';
import { openLog } from './log';

vi.mock('../api/client', () => ({ getLog: vi.fn() }));
vi.mock('./preferences', () => ({
  messages: { value: { log_hole: (bytes: string) => `[${bytes} bytes gone]` } },
}));

/** A server that has `text` as the log of rank 0 of attempt 1, of which the first `hole` bytes are no longer kept. */
function serve(text: string, hole = 0): void {
  (getLog as Mock<typeof getLog>).mockImplementation((_id: string, query: LogQuery) => {
    const from = Math.max(query.offset ?? 0, hole);
    return Promise.resolve({
      attempt: 1,
      rank: query.rank ?? 0,
      offset: from,
      end: text.length,
      text: text.slice(from),
    });
  });
}

const range = (offset: number, text: string, attempt = 1): LogMessage => ({
  attempt,
  rank: 0,
  offset,
  end: offset + text.length,
  text,
});

test('what arrives while the tail is read is joined to it once', async () => {
  serve('one\ntwo\n');
  const log = openLog('job');
  const loaded = log.load();
  log.take(range(4, 'two\n'));
  log.take(range(8, 'three\n'));
  await loaded;
  expect(log.text.value?.lines).toEqual(['one', 'two', 'three']);
});

test('missing bytes are read from the server, what came meanwhile follows', async () => {
  serve('one\n');
  const log = openLog('job');
  await log.load();
  serve('one\ntwo\nthree\n');
  log.take(range(8, 'three\n'));
  log.take(range(14, 'four\n'));
  await vi.waitFor(() => expect(log.text.value?.lines).toEqual(['one', 'two', 'three', 'four']));
});

test('bytes that are gone are told', async () => {
  serve('one\n');
  const log = openLog('job');
  await log.load();
  serve('one\ntwo\nthree\n', 8);
  log.take(range(8, 'three\n'));
  await vi.waitFor(() => expect(log.text.value?.lines).toEqual(['one', '[4 bytes gone]', 'three']));
});

test('bytes that the server never has do not make it ask for ever', async () => {
  serve('one\n');
  const log = openLog('job');
  await log.load();
  log.take(range(8, 'three\n'));
  await vi.waitFor(() => expect(log.text.value?.lines).toEqual(['one', '[4 bytes gone]', 'three']));
});

test('a read that fails is made up for by the next message', async () => {
  serve('one\n');
  const log = openLog('job');
  await log.load();
  (getLog as Mock<typeof getLog>).mockRejectedValueOnce(new Error('away'));
  log.take(range(8, 'three\n'));
  await vi.waitFor(() => expect(getLog).toHaveLastReturnedWith(expect.any(Promise)));
  serve('one\ntwo\nthree\nfour\n');
  await vi.waitFor(() => {
    log.take(range(14, 'four\n'));
    expect(log.text.value?.lines).toEqual(['one', 'two', 'three', 'four']);
  });
});

test('a newer attempt takes the place of an older one, unless that was chosen', async () => {
  serve('one\n');
  const log = openLog('job');
  await log.load();
  log.take(range(0, 'again\n', 2));
  expect(log.text.value).toMatchObject({ attempt: 2, lines: ['again'] });
  log.take(range(4, 'late\n', 1));
  expect(log.text.value?.lines).toEqual(['again']);
  await log.choose(0, 1);
  log.take(range(6, 'more\n', 2));
  expect(log.text.value).toMatchObject({ attempt: 1, lines: ['one'] });
});
