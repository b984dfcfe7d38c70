import { formatRanges } from './format';
import type { Messages } from './messages';

export interface Place {
  host: string;
  devices: number[];
  simulated: boolean;
}

/** Host and cards of an attempt; cards that are CPU processes say so. */
export function whereText(place: Place, t: Messages): string {
  const where = t.on_cards(place.host, formatRanges(place.devices));
  return place.simulated ? t.simulated_cards(where) : where;
}
