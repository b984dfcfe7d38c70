// The dashboard's entry: the shell, and the page that the address names.
import './styles/index.css';
import { render } from 'preact';
import { useEffect } from 'preact/hooks';
import { Header } from './components/Header';
import { Missing, OfflineBar, SignedOutBanner } from './components/Notice';
import { HostsPage } from './pages/HostsPage';
import { JobPage } from './pages/JobPage';
import { JobsPage } from './pages/JobsPage';
import { messages } from './state/preferences';
import { interceptLinks, route } from './state/router';
import { watchYard } from './state/yard';

function App() {
  return (
    <>
      <Header />
      <main id="main" tabIndex={-1}>
        <SignedOutBanner />
        <Page />
      </main>
      <OfflineBar />
    </>
  );
}

function Page() {
  const here = route.value;
  if (here.page === 'job') return <JobPage key={here.id} id={here.id} />;
  if (here.page === 'missing') return <Missing title={messages.value.not_found} />;
  return <Yard page={here.page} />;
}

function Yard({ page }: { page: 'jobs' | 'hosts' }) {
  useEffect(watchYard, []);
  return page === 'jobs' ? <JobsPage /> : <HostsPage />;
}

interceptLinks();
const root = document.getElementById('app');
if (root) render(<App />, root);
