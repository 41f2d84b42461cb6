import numpy as np
import pytest

from unet.diagnostics import device_speed


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_products_one_after_the_other_stay_finite(dtype):
    assert np.isfinite(float(device_speed.chained_products(256, 20, dtype)().numpy()))
