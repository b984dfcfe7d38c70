// Whether what a page needs has been read, and why not.
import { ApiError } from '../api/client';
import { connection } from '../api/follow';

export type Loading =
  { state: 'loading' } | { state: 'ready' } | { state: 'missing' } | { state: 'failed'; why: string };

/** What a failed read means for the page; a lost session is told by the connection, too. */
export function failure(error: unknown): Loading {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) connection.value = 'signed_out';
  if (error.status === 404) return { state: 'missing' };
  return { state: 'failed', why: error.status === 0 ? '' : error.message };
}
