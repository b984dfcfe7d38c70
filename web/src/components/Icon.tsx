// The few icons, drawn in a 16-unit box in the colour of the text.
import type { ComponentChildren } from 'preact';

const SHAPES = {
  queued: <circle cx="8" cy="8" r="5.250" stroke-dasharray="2.600 2.100" />,
  running: (
    <>
      <circle cx="8" cy="8" r="5.250" opacity="0.3" />
      <path d="M8 2.750a5.250 5.250 0 0 1 5.250 5.250" />
    </>
  ),
  paused: <path d="M6 4.250v7.500M10 4.250v7.500" />,
  succeeded: <path d="M3.500 8.500l3 3 6-7" />,
  failed: <path d="M4.250 4.250l7.500 7.500M11.750 4.250l-7.500 7.500" />,
  cancelled: (
    <>
      <circle cx="8" cy="8" r="5.250" />
      <path d="M4.400 11.600l7.200-7.200" />
    </>
  ),
  auto: (
    <>
      <circle cx="8" cy="8" r="5.250" />
      <path d="M8 2.750v10.500a5.250 5.250 0 0 0 0-10.500z" fill="currentColor" />
    </>
  ),
  light: (
    <>
      <circle cx="8" cy="8" r="2.750" />
      <path d="M8 1.500v1.250M8 13.250v1.250M1.500 8h1.250M13.250 8h1.250M3.400 3.400l.900.900M11.700 11.700l.900.900M12.600 3.400l-.900.900M4.300 11.700l-.900.900" />
    </>
  ),
  dark: <path d="M13 9.600A5.500 5.500 0 1 1 6.400 3a4.400 4.400 0 0 0 6.600 6.600z" />,
  back: <path d="M9.500 3.500L5 8l4.500 4.500" />,
  out: <path d="M6.500 3H3.500v10h3M9.500 5l3 3-3 3M12.500 8H6.500" />,
} satisfies Record<string, ComponentChildren>;

export type IconName = keyof typeof SHAPES;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 16 16" aria-hidden="true" focusable="false">
      <g fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round">
        {SHAPES[name]}
      </g>
    </svg>
  );
}
