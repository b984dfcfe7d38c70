// Which page an address means, and the address of a page.

export type Route = { page: 'jobs' } | { page: 'job'; id: string } | { page: 'hosts' } | { page: 'missing' };

const BASE = '/ui';

export function parseRoute(pathname: string): Route {
  const parts = pathname.replace(/\/+$/, '').slice(BASE.length).split('/').slice(1);
  const [head, id, ...rest] = parts;
  if (!pathname.startsWith(BASE) || rest.length > 0) return { page: 'missing' };
  if (head === undefined) return { page: 'jobs' };
  if (head === 'hosts' && id === undefined) return { page: 'hosts' };
  if (head === 'jobs' && id === undefined) return { page: 'jobs' };
  if (head === 'jobs' && id) return decodeJob(id);
  return { page: 'missing' };
}

export function hrefOf(route: Exclude<Route, { page: 'missing' }>): string {
  if (route.page === 'job') return `${BASE}/jobs/${encodeURIComponent(route.id)}`;
  return route.page === 'hosts' ? `${BASE}/hosts` : `${BASE}/`;
}

/** Where to go after signing in: an own page of the dashboard, never an address from elsewhere. */
export function safeNext(next: string | null): string {
  const own = next !== null && /^\/ui\/[\w\-./%]*$/.test(next) && parseRoute(next).page !== 'missing';
  return own ? next : `${BASE}/`;
}

function decodeJob(id: string): Route {
  try {
    return { page: 'job', id: decodeURIComponent(id) };
  } catch {
    return { page: 'missing' };
  }
}
