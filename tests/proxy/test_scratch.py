from tests.proxy.helpers import *
def test_a(rig_of):
    rig = rig_of()
    rig.send(post1())
    assert rig.keys == [secret("one")]
    rig.server.send(LIMITED)
    assert rig.keys == [secret("one"), secret("two")]
    assert len(rig.servers)==1
    rig.server.send(OK)
    assert rig.answers[0].status==200
    assert rig.answers[0].body==OK_BODY
    assert rig.cooling()=={"one"}
    print(rig.received, rig.hooks)
def test_b(rig_of):
    rig = rig_of(client2=True, server2=True)
    s=rig.ask()
    assert rig.keys == [secret("one")]
    rig.server.answer(1,429,LIMIT_BODY,LIMITED_HEADERS)
    assert rig.keys == [secret("one"), secret("two")]
    assert [m.stream_id for m in rig.requests]==[1,3]
    rig.server.answer(3,200,OK_BODY,[JSON])
    assert rig.answers[0].body==OK_BODY
