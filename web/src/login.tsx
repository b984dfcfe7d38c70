// The sign-in page's entry: the code of a one-time link from the address, or a token.
import './styles/index.css';
import { render } from 'preact';
import { LoginPage } from './pages/LoginPage';

const root = document.getElementById('app');
if (root) render(<LoginPage />, root);
