// Owns how the dashboard is built: two pages under /ui/, nothing inlined, because the CSP forbids inline script and style.
import { defineConfig, type Plugin } from 'vite';

/** Paint waits for the entry script, so a chosen theme never flashes the other one first. */
const renderBlocking: Plugin = {
  name: 'render-blocking-entry',
  transformIndexHtml: {
    order: 'post',
    handler: (html) => html.replace('<script type="module"', '<script type="module" blocking="render"'),
  },
};

export default defineConfig({
  base: '/ui/',
  plugins: [renderBlocking],
  build: {
    target: 'es2022',
    // Browsers of 2024 know light-dark(); rewriting it for older ones would double every colour.
    cssTarget: ['chrome123', 'firefox120', 'safari17.5'],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rolldownOptions: { input: ['index.html', 'login.html'] },
  },
});
