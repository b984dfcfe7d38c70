"""What becomes of hosts and devices in a life of jobs: workers come and go, people hold them back, cards fall ill and are looked at."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from store import device_health, hosts
from store.db import Database
from tests.store.oracle import Look, Oracle

DEVICES = {"a": 3, "b": 2}

WELL = Look("ok")
ILL = Look("alarm", ailment="its health is ALARM")

NAMES = st.sampled_from(sorted(DEVICES))
PLACES = st.sampled_from([(name, index) for name, number in DEVICES.items() for index in range(number)])
LOOKS = st.just(WELL) | st.builds(
    Look,
    st.sampled_from([None, "ok", "alarm"]),
    ailment=st.sampled_from([None, None, ILL.ailment]),
    residue=st.sampled_from([None, None, "process 7 of nobody's job on it"]),
)


class Fleet(RuleBasedStateMachine):
    """What is put out of service comes back twice as often as it goes: else most of a life would have nothing to place on."""

    database: Database
    oracle: Oracle

    @rule(name=NAMES, drains=st.booleans())
    def a_worker_leaves_or_starts(self, name: str, drains: bool) -> None:
        with self.database.write() as session:
            if drains:
                hosts.leave(session, name)
            else:
                slots = ["slot"] * DEVICES[name]
                hosts.register(session, name, device_type="cpu", device_names=slots, boot_id="c", versions={})
        self.oracle.hosts[name].status = "draining" if drains else "online"
        self.oracle.hosts[name].beat += not drains

    @rule(name=NAMES, drains=st.sampled_from([True, False, False]))
    def drain_or_undrain(self, name: str, drains: bool) -> None:
        with self.database.write() as session:
            (hosts.drain if drains else hosts.undrain)(session, name)
        self.oracle.hosts[name].is_drained = drains

    @rule(place=PLACES, cordons=st.sampled_from([True, False, False]))
    def cordon_or_uncordon(self, place: tuple[str, int], cordons: bool) -> None:
        with self.database.write() as session:
            (hosts.cordon if cordons else hosts.uncordon)(session, *place)
        self.oracle.devices[place].is_cordoned = cordons

    @rule(place=PLACES, look=LOOKS, in_time=st.booleans())
    def look_at_a_card(self, place: tuple[str, int], look: Look, in_time: bool) -> None:
        self._look(place[0], {place[1]: look}, in_time=in_time)

    @rule(name=NAMES)
    def look_at_all_cards_and_find_them_well(self, name: str) -> None:
        self._look(name, dict.fromkeys(range(DEVICES[name]), WELL), in_time=True)

    def _look(self, name: str, found: dict[int, Look], *, in_time: bool) -> None:
        """`in_time`: it began after the host had seen which devices wait for it."""
        with self.database.read() as session:
            seen = device_health.unseen(session, name) if in_time else ()
        readings = [
            device_health.Reading(index, look.health, ailment=look.ailment, residue=look.residue)
            for index, look in found.items()
        ]
        with self.database.write() as session:
            is_news = device_health.observe(session, name, readings, seen=seen)
        assert is_news == self.oracle.look(name, found, in_time=in_time)
