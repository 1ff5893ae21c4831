"""Delta stays below one over the number of devices, and what does not is said or refused."""

import pytest

from fedrecall.privacy.accounting.delta import delta_for, delta_warning

WANTED = {1: 1e-5, 943: 1e-5, 6_040: 1e-5, 99_999: 1e-5, 100_000: 1e-6, 128_077: 1e-6, 10**6: 1e-7, 10**9: 1e-10}


@pytest.mark.parametrize(("devices", "delta"), WANTED.items())
def test_delta_is_the_usual_one_or_below_one_over_the_devices(devices: int, delta: float) -> None:
    assert delta_for(devices) == pytest.approx(delta) and delta_for(devices) * devices < 1


def test_every_number_of_devices_gets_a_delta_without_a_warning() -> None:
    for exponent in range(37):
        for devices in (int(10 ** (exponent / 4)) + extra for extra in (0, 1)):
            assert not delta_warning(delta_for(devices), devices)


def test_a_delta_that_gives_whole_devices_away_is_said() -> None:
    assert "10 of 1,000,000 histories" in delta_warning(1e-5, 10**6)
    assert delta_warning(1e-6, 10**6) and not delta_warning(9.9e-7, 10**6)
    assert "1.111 devices alone" in delta_warning(0.9, None) and not delta_warning(1e-5, None)
