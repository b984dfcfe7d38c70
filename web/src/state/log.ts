// The log that a job's page shows: one rank of one attempt, read from its tail and followed by the job's stream.
import { signal, type Signal } from '@preact/signals';
import { getLog } from '../api/client';
import type { LogMessage } from '../api/types';
import { append, emptyLog, fromSlice, skipTo, type LogText } from '../lib/logText';
import { messages } from './preferences';

export interface LogView {
  text: Signal<LogText | null>;
  /** Whether the first read is still under way. */
  loading: Signal<boolean>;
  take: (message: LogMessage) => void;
  load: () => Promise<void>;
  /** Nothing to read yet: take what comes. */
  begin: () => Promise<void>;
  /** Show another rank or attempt; null leaves the choice of the rank to the server, of the attempt to the newest. */
  choose: (rank: number | null, attempt: number | null) => Promise<void>;
  close: () => void;
}

interface Wanted {
  rank: number | null;
  attempt: number | null;
}

const TAIL_LINES = 5000;

export function openLog(id: string): LogView {
  const text = signal<LogText | null>(null);
  const loading = signal(true);
  let wanted: Wanted = { rank: null, attempt: null };
  /** Ranges that arrive while a read is under way; null when none is. */
  let waiting: LogMessage[] | null = null;
  let generation = 0;

  const load = async (): Promise<void> => {
    const mine = ++generation;
    waiting = [];
    loading.value = true;
    const slice = await getLog(id, { ...wanted, tail: TAIL_LINES }).finally(() => (loading.value = false));
    if (mine !== generation) return;
    text.value = slice && fromSlice(slice);
    drain();
  };

  /** Read what is missing after `from`. Each turn moves on, or gives up a message: nothing is asked for ever. */
  const fill = async (from: LogText): Promise<void> => {
    const mine = generation;
    const query = { rank: from.rank, attempt: from.attempt, offset: from.end };
    const slice = await getLog(id, query).catch(() => null);
    if (mine !== generation) return;
    if (!slice) {
      waiting = null; // the next message finds the gap again
      return;
    }
    const joined = append(skipHole(from, slice.offset), slice);
    const next = waiting?.[0];
    if (joined !== 'gap' && joined.end > from.end) text.value = joined;
    else if (next && next.offset > from.end) text.value = skipHole(from, next.offset);
    else waiting?.shift();
    drain();
  };

  const drain = (): void => {
    const messages = waiting ?? [];
    waiting = null;
    for (const message of messages) take(message);
  };

  const take = (message: LogMessage): void => {
    if (waiting) {
      waiting.push(message);
      return;
    }
    const held = logFor(text.value, message, wanted);
    if (!held) return;
    const joined = append(held, message);
    if (joined !== 'gap') text.value = joined;
    else {
      waiting = [message];
      void fill(held);
    }
  };

  const begin = (): Promise<void> => {
    loading.value = false;
    return Promise.resolve();
  };

  return {
    text,
    loading,
    take,
    load,
    begin,
    choose: (rank, attempt) => {
      wanted = { rank, attempt };
      return load();
    },
    close: () => {
      generation++;
    },
  };
}

/** The log a message belongs to: the one held, or a fresh one where a newer attempt begins; null when it is another's. */
function logFor(held: LogText | null, message: LogMessage, wanted: Wanted): LogText | null {
  const rank = wanted.rank ?? held?.rank ?? 0;
  if (message.rank !== rank) return null;
  if (wanted.attempt !== null && wanted.attempt !== message.attempt) return null;
  if (held && held.attempt > message.attempt) return null;
  return held?.attempt === message.attempt ? held : emptyLog(message.attempt, rank);
}

function skipHole(log: LogText, offset: number): LogText {
  return offset > log.end ? skipTo(log, offset, messages.value.log_hole(String(offset - log.end))) : log;
}
