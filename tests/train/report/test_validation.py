import numpy as np

from vidgen.train.report.validation import contact_sheet


def test_a_contact_sheet_has_the_first_and_last_frame() -> None:
    video = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1).repeat(3, axis=3)
    assert contact_sheet(video, 3)[0, :, 0].tolist() == [0, 4, 8]
    assert contact_sheet(video[:1], 3).shape == (1, 1, 3)
