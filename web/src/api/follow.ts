// One event stream that heals itself, and an honest word on whether it is live.
import { signal } from '@preact/signals';
import { ApiError } from './client';

export type Connection = 'connecting' | 'live' | 'reconnecting' | 'offline' | 'signed_out' | 'ended';

export interface FollowOptions {
  /** The stream's address, asked anew each time it is opened, so that it can start from where it stands. */
  url: () => string;
  /** What to do with each kind of event: its decoded data and its id. */
  on: Record<string, (data: never, id: string) => void>;
  /** A plain read behind the same credentials; it throws ApiError, which tells 401 from a server that is away. */
  probe: () => Promise<unknown>;
}

const OFFLINE_AFTER_MS = 10_000;
const LONGEST_WAIT_MS = 30_000;
const HIDDEN_FOR_MS = 60_000;

/** The state of the one stream of the open page; null while there is none, as on a page for something that is not there. */
export const connection = signal<Connection | null>(null);

/** Follow a stream until `close` is called; the page's connection state is kept up to date. */
export function follow(options: FollowOptions): { close: () => void; end: () => void } {
  let source: EventSource | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let offlineTimer: ReturnType<typeof setTimeout> | undefined;
  let hiddenTimer: ReturnType<typeof setTimeout> | undefined;
  let failures = 0;
  let closed = false;

  const drop = (): void => {
    source?.close();
    source = null;
    clearTimeout(timer);
  };

  const open = (): void => {
    drop();
    source = new EventSource(options.url());
    source.onopen = () => {
      failures = 0;
      clearTimeout(offlineTimer);
      offlineTimer = undefined;
      connection.value = 'live';
    };
    source.onerror = () => {
      if (source?.readyState === EventSource.CLOSED) void retry();
      else lose();
    };
    for (const [kind, handle] of Object.entries(options.on)) {
      source.addEventListener(kind, (event: MessageEvent<string>) => {
        handle(JSON.parse(event.data) as never, event.lastEventId);
      });
    }
  };

  const lose = (): void => {
    if (connection.value !== 'offline') connection.value = 'reconnecting';
    offlineTimer ??= setTimeout(() => (connection.value = 'offline'), OFFLINE_AFTER_MS);
  };

  /** The browser gives up on an answer other than 200, so ask what is wrong and open a new stream. */
  const retry = async (): Promise<void> => {
    drop();
    lose();
    try {
      await options.probe();
      if (!closed && failures++ === 0) open();
      else again();
    } catch (error) {
      if (closed) return;
      if (error instanceof ApiError && error.status === 401) {
        clearTimeout(offlineTimer);
        connection.value = 'signed_out';
      } else {
        failures++;
        again();
      }
    }
  };

  const again = (): void => {
    if (closed) return;
    const wait = Math.min(LONGEST_WAIT_MS, 1000 * 2 ** Math.min(failures, 5)) * (0.75 + Math.random() / 2);
    timer = setTimeout(open, wait);
  };

  const wake = (): void => {
    if (source === null || connection.value !== 'live') open();
  };

  // A browser opens six connections to a server: a page that nobody sees must not hold one for long.
  const onVisibility = (): void => {
    clearTimeout(hiddenTimer);
    if (document.hidden) hiddenTimer = setTimeout(rest, HIDDEN_FOR_MS);
    else wake();
  };

  const rest = (): void => {
    drop();
    if (connection.value === 'live') connection.value = 'connecting';
  };

  const close = (): void => {
    closed = true;
    drop();
    clearTimeout(offlineTimer);
    clearTimeout(hiddenTimer);
    document.removeEventListener('visibilitychange', onVisibility);
    removeEventListener('online', wake);
    connection.value = null;
  };

  connection.value = 'connecting';
  document.addEventListener('visibilitychange', onVisibility);
  addEventListener('online', wake);
  open();
  return {
    close,
    end: () => {
      close();
      connection.value = 'ended';
    },
  };
}
