// The page that is open, kept in step with the address bar.
import { signal } from '@preact/signals';
import { parseRoute, type Route } from '../lib/route';

export const route = signal<Route>(parseRoute(location.pathname));

export function navigate(href: string): void {
  history.pushState(null, '', href);
  route.value = parseRoute(location.pathname);
  scrollTo(0, 0);
  // The link that had the focus is gone with its page.
  document.getElementById('main')?.focus({ preventScroll: true });
}

/** Plain clicks on links to own pages change the page in place. */
export function interceptLinks(): void {
  addEventListener('popstate', () => (route.value = parseRoute(location.pathname)));
  document.addEventListener('click', (event) => {
    if (
      event.defaultPrevented ||
      event.button !== 0 ||
      event.metaKey ||
      event.ctrlKey ||
      event.shiftKey ||
      event.altKey
    )
      return;
    const link = event.target instanceof Element ? event.target.closest('a') : null;
    if (!link || link.target !== '' || link.hash !== '' || link.origin !== location.origin) return;
    if (!link.pathname.startsWith('/ui/') || parseRoute(link.pathname).page === 'missing') return;
    event.preventDefault();
    navigate(link.pathname);
  });
}
