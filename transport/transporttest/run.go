package transporttest

import (
	"sync"
	"testing"
	"time"
)

// atOnce is how many items run at the same time. Most of them wait most of the
// time, so it does not depend on the number of processors.
const atOnce = 12

// item is one thing that a transport has to prove.
type item struct {
	name string
	run  func(e *env)
}

// items are the conformance list, in its order. The number in a name stays with
// its item for ever, so that reports can refer to it.
var items = []item{
	{"01_Delivery_MessagesArriveUnaltered", arriveUnaltered},
	{"02_Delivery_NothingIsLostAmongManySubscribers", manySubscribers},
	{"03_Delivery_SubjectsDoNotMix", subjectsDoNotMix},
	{"03_Delivery_WildcardsAsNATSDefinesThem", wildcards},
	{"04_Delivery_GroupsShareAndOthersGetAll", groupsShare},
	{"05_Delivery_OrderIsKept", orderIsKept},
	{"05_Delivery_OrderIsKeptPerKey", orderIsKeptPerKey},
	{"05_Delivery_StrictOrderSurvivesFailures", strictOrder},
	{"06_Delivery_LateSubscribersAndHistory", lateSubscribers},
	{"06_Delivery_GroupsKeepTheirPlace", groupsKeepTheirPlace},

	{"07_Settlement_NakIsRedelivered", nakIsRedelivered},
	{"07_Settlement_FailureIsRedelivered", failureIsRedelivered},
	{"08_Settlement_DelaysAreHonoured", delaysAreHonoured},
	{"09_Settlement_AttemptsAreCounted", attemptsAreCounted},
	{"09_Settlement_AttemptsAreLimited", attemptsAreLimited},
	{"10_Settlement_TermIsFinal", termIsFinal},
	{"11_Settlement_LeasesExpire", leasesExpire},
	{"11_Settlement_LeasesAreExtended", leasesAreExtended},
	{"11_Settlement_WorkingHandlersKeepTheirLeases", handlersKeepLeases},
	{"12_Settlement_SecondSettleIsHarmless", secondSettleIsHarmless},
	{"13_Settlement_OutcomesAutomatic", outcomesAutomatic},
	{"13_Settlement_OutcomesManual", outcomesManual},
	{"13_Settlement_OutcomesOfTheLastAttempt", outcomesLastAttempt},
	{"14_Settlement_FailuresDoNotStopTheRest", failuresDoNotStopTheRest},

	{"15_Lifecycle_CancelledSubscribeReturnsAndTheRestWaits", cancelledSubscribe},
	{"16_Lifecycle_RepeatedSubscribingLosesNothing", repeatedSubscribing},
	{"16_Lifecycle_ManyMayCloseAtOnce", manyMayClose},
	{"17_Lifecycle_UseAfterCloseIsATypedError", useAfterClose},
	{"18_Lifecycle_CloseDuringPublishing", closeDuringPublishing},
	{"19_Lifecycle_CancelledContexts", cancelledContexts},
	{"20_Lifecycle_DrainFinishesWhatRuns", drainFinishes},
	{"20_Lifecycle_DrainedMessagesAreSettled", drainedAreSettled},
	{"20_Lifecycle_DrainHasALimit", drainHasALimit},
	{"21_Lifecycle_NoGoroutineIsLeft", noGoroutineIsLeft},
	{"22_Lifecycle_BrokerRestart", brokerRestart},
	{"23_Lifecycle_ConsumerDeletedUnderASubscription", consumerDeleted},
	{"23_Lifecycle_StreamDeletedUnderASubscription", streamDeleted},

	{"24_Content_BodiesRoundTrip", bodiesRoundTrip},
	{"25_Content_HeadersRoundTrip", headersRoundTrip},
	{"25_Content_HeadersOfForeignClients", foreignHeaders},
	{"25_Content_BadHeadersAreTypedErrors", badHeaders},
	{"26_Content_BadSubjectsAreTypedErrors", badSubjects},
	{"27_Content_TraceContextAndMessageID", traceAndID},
	{"27_Content_SameIDIsStoredOnce", sameID},
	{"28_Content_ConcurrencyIsBounded", concurrencyIsBounded},
	{"29_Requests_AreAnsweredOnce", requestsAreAnswered},
	{"29_Requests_FailuresDiffer", requestFailuresDiffer},
	{"29_Requests_AreGathered", requestsAreGathered},
	{"30_Content_MissingStreamFailsFast", missingStream},

	{"31_Contract_CreditIsNeverExceeded", creditIsNeverExceeded},
	{"32_Contract_PauseTakesCreditBack", pauseTakesCreditBack},
	{"33_Contract_CloseHandsOver", closeHandsOver},
	{"34_Contract_FlushedSettlementsCount", flushedSettlements},
	{"35_Contract_SinkIsCalledSerially", sinkIsSerial},
	{"36_Contract_BuffersBelongToTheirOwners", buffersBelong},
	{"37_Contract_CapabilitiesAndInfo", capabilitiesAndInfo},
	{"38_Fetch_ReturnsWhatIsThere", fetchReturns},
	{"38_Fetch_SkipsWhatDoesNotDecode", fetchSkipsUndecodable},
	{"38_Fetch_BadArguments", fetchBadArguments},

	{"39_Publish_ExpectedSequenceHolds", expectedSequenceHolds},
	{"40_Publish_MessagesExpire", messagesExpire},
	{"41_Publish_LaterIsNeverEarly", laterIsNeverEarly},
	{"42_Publish_AtomicBatchesAreAllOrNothing", atomicBatches},
	{"43_Publish_BatchesAnswerInOrder", batchesAnswerInOrder},
	{"44_Publish_PipelinesAnswerByToken", pipelinesAnswerByToken},
	{"45_Publish_FlushedIsThere", flushedIsThere},
}

// Run runs the suite as subtests of t, several at a time, one named after each
// item. With -short the numbers are smaller and the assertions the same.
//
// It calls h.Start concurrently. What the items start has ended when Run
// returns, so that a goleak check in TestMain holds.
func Run(t *testing.T, h Harness) {
	t.Helper()

	if h.Start == nil {
		t.Fatal("transporttest: the harness has no Start")
	}

	var (
		running sync.WaitGroup
		slots   = make(chan struct{}, atOnce)
	)

	for _, it := range items {
		slots <- struct{}{}

		// Not t.Parallel, which lets run as many as there are processors.
		running.Go(func() {
			defer func() { <-slots }()

			t.Run(it.name, func(t *testing.T) { it.run(newEnv(t, h)) })
		})
	}

	running.Wait()
}

func (h Harness) maxPayload() int {
	if h.MaxPayload > 0 {
		return h.MaxPayload
	}

	return 1 << 20
}

func (h Harness) patience() time.Duration {
	if h.Patience > 0 {
		return h.Patience
	}

	return 30 * time.Second
}
