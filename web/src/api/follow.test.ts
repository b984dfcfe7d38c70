import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { ApiError } from './client';
import { connection, follow } from './follow';

/** The browser's EventSource as far as `follow` uses it; the test says when it opens, fails and speaks. */
class Source extends EventTarget {
  static readonly CLOSED = 2;
  static all: Source[] = [];
  readyState = 0;
  onopen: (() => void) | null = null;
  onerror: (() => void) | null = null;

  constructor(readonly url: string) {
    super();
    Source.all.push(this);
  }

  close(): void {
    this.readyState = Source.CLOSED;
  }

  open(): void {
    this.readyState = 1;
    this.onopen?.();
  }

  fail(readyState: number): void {
    this.readyState = readyState;
    this.onerror?.();
  }

  say(kind: string, data: unknown, id: string): void {
    this.dispatchEvent(new MessageEvent(kind, { data: JSON.stringify(data), lastEventId: id }));
  }
}

const newest = (): Source => {
  const source = Source.all.at(-1);
  if (!source) throw new Error('no stream was opened');
  return source;
};

const page = Object.assign(new EventTarget(), { hidden: false });

let close = (): void => undefined;

beforeEach(() => {
  Source.all = [];
  page.hidden = false;
  vi.useFakeTimers();
  vi.stubGlobal('EventSource', Source);
  vi.stubGlobal('document', page);
  vi.stubGlobal('addEventListener', vi.fn());
  vi.stubGlobal('removeEventListener', vi.fn());
});

afterEach(() => {
  close();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

function start(probe: () => Promise<unknown> = () => Promise.resolve()) {
  let cursor = '7';
  const seen: unknown[] = [];
  const stream = follow({
    url: () => `/s?after=${cursor}`,
    on: {
      job: (data, id) => {
        seen.push(data);
        cursor = id;
      },
    },
    probe,
  });
  close = stream.close;
  return { seen, stream };
}

test('is live once open, and hands on what comes', () => {
  const { seen } = start();
  expect(connection.value).toBe('connecting');
  newest().open();
  newest().say('job', { a: 1 }, '8');
  expect(connection.value).toBe('live');
  expect(seen).toEqual([{ a: 1 }]);
});

test('says that it reconnects, then that it is offline, and is live again by itself', () => {
  start();
  newest().open();
  newest().fail(0);
  expect(connection.value).toBe('reconnecting');
  vi.advanceTimersByTime(10_000);
  expect(connection.value).toBe('offline');
  newest().open();
  expect(connection.value).toBe('live');
  expect(Source.all).toHaveLength(1);
});

test('opens a new stream from where it stood when the browser gives up', async () => {
  start();
  newest().open();
  newest().say('job', {}, '9');
  newest().fail(Source.CLOSED);
  await vi.advanceTimersByTimeAsync(0);
  expect(newest().url).toBe('/s?after=9');
  expect(Source.all).toHaveLength(2);
});

test('waits ever longer while the server is away', async () => {
  start(() => Promise.reject(new ApiError(0, 'away')));
  for (let round = 0; round < 8; round++) {
    newest().fail(Source.CLOSED);
    await vi.advanceTimersByTimeAsync(40_000);
  }
  expect(connection.value).toBe('offline');
  expect(Source.all).toHaveLength(9);
  newest().fail(Source.CLOSED);
  await vi.advanceTimersByTimeAsync(20_000);
  expect(Source.all).toHaveLength(9);
});

test('a session that has ended is said, and not asked about again until the page is looked at', async () => {
  start(() => Promise.reject(new ApiError(401, 'no')));
  newest().fail(Source.CLOSED);
  await vi.advanceTimersByTimeAsync(300_000);
  expect(connection.value).toBe('signed_out');
  expect(Source.all).toHaveLength(1);
  page.dispatchEvent(new Event('visibilitychange'));
  expect(Source.all).toHaveLength(2);
});

test('a page that nobody sees gives its connection back, and takes it up again', () => {
  start();
  newest().open();
  page.hidden = true;
  page.dispatchEvent(new Event('visibilitychange'));
  vi.advanceTimersByTime(60_000);
  expect(newest().readyState).toBe(Source.CLOSED);
  page.hidden = false;
  page.dispatchEvent(new Event('visibilitychange'));
  expect(Source.all).toHaveLength(2);
});

test('says nothing where no stream is open', () => {
  close();
  expect(connection.value).toBeNull();
  const { stream } = start();
  newest().open();
  stream.close();
  expect(connection.value).toBeNull();
});

test('once ended it stays so', () => {
  const { stream } = start();
  newest().open();
  stream.end();
  vi.advanceTimersByTime(100_000);
  page.dispatchEvent(new Event('visibilitychange'));
  expect(connection.value).toBe('ended');
  expect(Source.all).toHaveLength(1);
});
