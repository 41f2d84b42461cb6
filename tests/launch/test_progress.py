import os
import termios

from launch import progress


def test_a_log_gets_lines_now_and_then(capfd):
    with progress.show(3, 'image') as advance:
        advance(1)
    assert not capfd.readouterr().out  # not every few seconds have passed
    with open(os.devnull, 'w') as log, progress.Bar(3000, 'step', done=1000, stream=log, log_seconds=0) as bar:
        bar.advance(500)
        bar.set_status('loss 0.5')
        bar.log('step 1500: mIoU 60 %')
    assert capfd.readouterr().out == '1,500 of 3,000 steps\nstep 1500: mIoU 60 %\n'
    with open(os.devnull, 'w') as log, progress.Bar(3000, 'step', stream=log, log_seconds=None) as bar:
        bar.advance(3000)
    assert not capfd.readouterr().out


def test_a_terminal_gets_a_bar(capfd):
    end, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with os.fdopen(terminal, 'w') as stream, progress.Bar(3000, 'step', done=1000, stream=stream) as bar:
        bar.advance(500)
        bar.set_status('loss 0.5')
        bar.log('step 1500: mIoU 60 %')
        shown = ''
        while 'loss 0.5' not in shown:
            shown += os.read(end, 1 << 16).decode()
    os.close(end)
    assert '1000/3000' in shown and '1500/3000' in shown
    assert 'step 1500' in capfd.readouterr().out
