from collections.abc import Iterator

import pytest

from tests.proof.parts import Parts, running_parts


@pytest.fixture(scope="package")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with running_parts(tmp_path_factory.mktemp("parts")) as running:
        yield running
