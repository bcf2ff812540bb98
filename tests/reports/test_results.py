"""What is found below a folder."""

from si_jax.reports import results
from tests.helpers.folders import write_run


def test_the_helper_of_a_run_is_a_part_of_it_and_a_run_of_that_name_is_not(tmp_path):
    of_run = write_run(tmp_path / 'one')
    write_run(of_run / 'helper')
    alone = write_run(tmp_path / 'helper')
    assert [run.path for run in results.scan(tmp_path).runs] == [alone, of_run]
    assert [run.path for run in results.scan(of_run / 'helper').runs] == [of_run / 'helper']
